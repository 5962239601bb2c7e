import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Base64;
import org.apache.kafka.common.utils.Utils;

/** Prints, for each line of standard input (a key in Base64), the hash that Kafka's default partitioner uses. */
public class Murmur2 {
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null; ) {
            System.out.println(Utils.toPositive(Utils.murmur2(Base64.getDecoder().decode(line))));
        }
    }
}
